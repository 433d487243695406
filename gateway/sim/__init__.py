"""Virtual-time simulation of the production chains."""
