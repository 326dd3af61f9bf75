"""What travels between the parts of Serai: frozen Pydantic models, a noun a file."""
