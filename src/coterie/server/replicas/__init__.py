"""Several processes with a model each, on one or several machines, behind one server."""
