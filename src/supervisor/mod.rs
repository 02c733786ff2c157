//! Children: started, watched, replaced, stopped. Pure tables: `child_state`, `service_state`; processes:
//! `fleet`, `child`. Not in scope: what the children do.

mod child;
mod child_state;
pub mod fleet;
pub mod service_state;
