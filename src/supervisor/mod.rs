//! stub while building
#![allow(missing_docs)]
use crate::{app::Setup, cli::Exit, handler::Registry, memory::MemoryBroker};
pub struct ExecutionHost;
impl ExecutionHost {
    pub fn start(_: &Setup, _: &MemoryBroker) -> Result<ExecutionHost, String> {
        Err("x".into())
    }
    pub fn failed(&self) -> Option<String> {
        None
    }
}
pub fn serve(_: &Setup) -> Exit {
    Exit::Failed
}
pub fn run_web_child(_: &Registry) -> Exit {
    Exit::Failed
}
pub fn run_executor_child(_: &Registry) -> Exit {
    Exit::Failed
}
