"""The job engine: what a workflow is, and what runs one durably."""
