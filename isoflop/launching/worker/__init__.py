"""The code that runs inside a job."""
