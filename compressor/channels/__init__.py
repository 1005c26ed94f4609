"""Which channels must be removed together: labels that follow the channels through the operators, and the channel
groups.
"""
