"""Every SQL statement of the project, as files; read through `supervisor.db`, never by path from elsewhere."""
