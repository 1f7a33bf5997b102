//! One module for each subcommand, and what they share.
