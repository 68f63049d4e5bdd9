"""What users do, whether by the API, the dashboard, the command line or GitHub: one function each.

Errors are of the domain, not of HTTP; each caller turns them into its own answer.
"""
