"""Model families, a folder each: network, files, variants and schedules of one family; and the registry that lists them."""
