//! The hot store on a real Redis. One binary, since linking is what tests of this size cost most.

#![cfg(test)]

mod appending;
mod cluster;
mod loading;
mod outages;
mod reading;
mod scanning;
mod slots;
mod support;
