"""Rules and dashboards for what the services tell of themselves."""
