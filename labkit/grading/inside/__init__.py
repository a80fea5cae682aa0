"""What runs within the wall, beside a submission, which can read it and change it."""
