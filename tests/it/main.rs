//! Drives the real binary, as its users do; with the real XMPP servers where they are installed.
//!
//! A test that needs another program says which when it skips, and fails instead where `INVITED_TEST_REQUIRE` names it
//! (words separated by commas, such as `prosody,sid`), as CI does.

// Here a failure is meant to be a panic, and prints are for people who watch the tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod harness;

mod admin;
mod agreement;
mod api;
mod backup;
mod bad_days;
mod browser;
mod cli;
mod contract;
mod doctor;
mod doctor_peers;
mod ejabberd;
mod gate;
mod invites;
mod kinds;
mod links;
mod log;
mod memory;
mod one_link;
mod page;
mod prosody;
mod register;
mod register_attacks;
mod register_ejabberd;
mod register_prosody;
mod register_wire;
mod serve;
mod setup;
mod start;
mod steps;
mod tidy;
