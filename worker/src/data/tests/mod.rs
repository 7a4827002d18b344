mod files;
mod loader;
mod transform;
