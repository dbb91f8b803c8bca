@0x86c366a91393f3f8;
# What `-> stream` stands for; the id and the name are Cap'n Proto's own. Kept here because
# Debian's compiler comes without it.

struct StreamResult @0x995f9a3377c0b16e {}
