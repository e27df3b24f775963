//! What only the whole can show: models compiled and run on the host against the interpreter in f64, and file tests of each stage.

#[cfg(test)]
mod decode;
#[cfg(test)]
mod device;
#[cfg(test)]
mod filetests;
#[cfg(test)]
mod fp8;
#[cfg(test)]
mod gpu;
#[cfg(test)]
mod heads;
#[cfg(test)]
mod lists;
#[cfg(test)]
mod models;
#[cfg(test)]
mod mutations;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod random;
#[cfg(test)]
mod ranks;
#[cfg(test)]
mod reference;
