//! The write-ahead log: the torn end of a commit that nobody was told of is no damage, everything else is.
