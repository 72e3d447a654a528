"""Fill a Ranvier database with a long, believable log; it runs under Ranvier's own interpreter."""
