"""Methods that train a consistency function or a flow map."""
