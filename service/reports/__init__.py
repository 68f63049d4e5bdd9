"""What goes out about a check: check runs and comments on the code host, signed webhooks and Slack messages."""
