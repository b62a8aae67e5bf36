"""How the daemon gets on with the service manager that runs it."""
