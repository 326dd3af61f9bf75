"""The REST API: `app.py` derives the routes from schema/endpoints.py; what each does is in a module per noun."""
