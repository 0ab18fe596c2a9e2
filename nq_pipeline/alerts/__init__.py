"""What a person has to hear of: said once, in a file always and to a webhook if there is one."""
