"""The API's other side: a client derived from `schema/endpoints.py`, and the contexts that say where the API is."""
