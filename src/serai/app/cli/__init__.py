"""The command line: `serai NOUN VERB`, a noun a file.

Every file here imports only light things at its top; what talks to the API, parses YAML or draws is imported by the
function that needs it, so that help and completion answer at once.
"""
