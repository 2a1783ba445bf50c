"""Reading of files: data folders, packs, photographs, archives, downloads."""
