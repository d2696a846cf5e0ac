"""Planning of a study: the grid of a sweep file, its runs, and their bill on a cluster.

Imports no torch and talks to no cluster.
"""
