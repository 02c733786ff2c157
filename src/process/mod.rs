//! What any of our processes needs of its host: signals, hygiene, another account, a service manager, the control socket to its
//! parent and the bundle that it is born with, the public listener and its handover, the reactor, and a private directory.

pub mod account;
pub mod control_socket;
pub mod exec_shim;
pub mod handover;
pub mod hygiene;
pub mod listener;
pub mod private_dir;
pub mod program_vet;
pub mod reactor;
pub mod systemd;
