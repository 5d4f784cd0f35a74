"""The command line ``lapstrake``: thin, importing a package only inside the command that needs it."""
