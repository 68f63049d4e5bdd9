"""The use cases: one plain function for each thing that a user can do.

The REST API, the dashboard and the commands call these functions. They raise errors of the domain
(`service.actions.errors`); each caller turns such an error into its own answer.
"""
