"""The demo: every .py file of a directory, one durable run each, with workers killed on the way. README.md tells how."""
