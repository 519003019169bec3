"""Whatever people bring, opened: from a name, path, folder, address or hub id to rows, each with its place."""
