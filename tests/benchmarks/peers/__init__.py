"""`just bench peers`: the same decoder by this runtime and by what users would pick instead."""
