"""Laying out a study: the grid of a sweep file and the runs that come of it. Imports no torch, talks to no cluster."""
