"""Reports about checks: what goes out of the service, and the outbox that sends it again until it was delivered.

`sender` works off the outbox, `channels` knows how each kind of report is composed and sent, `texts` writes the
Markdown for the code host, `webhooks` the messages for subscribers. `service.github` only speaks GitHub's API.
"""
