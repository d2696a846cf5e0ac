"""The fitting methods, one function each."""
