"""Programs as other teams would write them: they know the contract and the topics, and nothing else in here."""
