"""What the API, jobs, reports and reconcilers do to the store, each within the caller's transaction.

Those that change desired state (`*_actions`, `vm_create`, `vm_edit`) check, write it, and submit the job that carries
it out, in the name of a `Requester`. They know nothing of HTTP: failover creates a VM as the API does.
"""
