"""Several hosts: a worker joins the fleet, runs nodes of arms for other hosts, and reserves hosts for its own arms."""
