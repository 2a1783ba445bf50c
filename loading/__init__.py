"""Files on disk: layouts of data folders, packs, photographs, archives."""
