"""What the API, jobs and reports do to the store, each within the caller's transaction."""
