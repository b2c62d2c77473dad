"""Instructions written by models and people, asked for only once images are chosen."""
