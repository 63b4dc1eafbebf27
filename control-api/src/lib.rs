//! The xDS v3 surface that both ends speak.
