"""The parent processes of a job: they start its ranks, watch them, and start them again."""
