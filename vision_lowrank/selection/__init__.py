"""Which modules adapt, and with which rank."""
