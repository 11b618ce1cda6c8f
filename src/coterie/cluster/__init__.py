"""Work that is spread over the machines of a Ray cluster, or done here: the same work, with the same results."""
