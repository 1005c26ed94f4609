"""Which channels must leave together: labels carried through the operators, and the groups they make."""
