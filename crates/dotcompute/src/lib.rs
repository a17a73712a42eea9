//! A GPU-native actor runtime.
