//! The market by JSON-RPC 2.0: one trait of which client and server are made. `POST /rpc`, or WebSocket messages on the same path.
//!
//! Who may call what is the same as for the REST call that does the same; so are the answers and the errors' codes.

use jsonrpsee::core::RpcResult;
use jsonrpsee::proc_macros::rpc;
use taskmarket::{AcceptTask, ComputeProof, RegisterNode, Signature, Task, TaskId, UpdateNodeStatus};

use crate::relay::MarketStats;
use crate::tasks::{Contract, OpenTasksFilter, TaskPage, TaskView};

/// The methods.
#[cfg_attr(all(feature = "client", feature = "server"), rpc(client, server, namespace = "zor"))]
#[cfg_attr(all(feature = "client", not(feature = "server")), rpc(client, namespace = "zor"))]
#[cfg_attr(all(feature = "server", not(feature = "client")), rpc(server, namespace = "zor"))]
pub trait Market {
    /// Publishes a task, as `POST /v1/tasks` does; answers its id, also if it is there already. API key.
    #[method(name = "publishTask", param_kind = map, with_extensions)]
    async fn publish_task(
        &self,
        task: Task,
        signature: Signature,
        verifying_contract: Option<Contract>,
    ) -> RpcResult<TaskId>;

    /// Takes a provider's word that it runs an attempt, as `POST /v1/tasks/{id}/accept` does. The signature.
    #[method(name = "acceptTask", param_kind = map, with_extensions)]
    async fn accept_task(&self, accept: AcceptTask, signature: Signature) -> RpcResult<TaskView>;

    /// Takes a proof, as `POST /v1/tasks/{id}/proof` does. The signature.
    #[method(name = "submitProof", param_kind = map, with_extensions)]
    async fn submit_proof(&self, proof: ComputeProof, signature: Signature) -> RpcResult<TaskView>;

    /// The task, as `GET /v1/tasks/{id}` shows it. API key.
    #[method(name = "getTaskStatus", param_kind = map, with_extensions)]
    async fn get_task_status(&self, task_id: TaskId) -> RpcResult<TaskView>;

    /// Says anew what the host of an open session offers, as `POST /v1/providers/{address}/registration` does. The signature.
    #[method(name = "registerNode", param_kind = map, with_extensions)]
    async fn register_node(
        &self,
        registration: RegisterNode,
        metadata: String,
        signature: Signature,
    ) -> RpcResult<()>;

    /// Says whether a host takes work, as `POST /v1/providers/{address}/status` does. The signature.
    #[method(name = "updateNodeStatus", param_kind = map, with_extensions)]
    async fn update_node_status(&self, update: UpdateNodeStatus, signature: Signature) -> RpcResult<()>;

    /// Tasks that nobody holds, newest first, as `GET /v1/tasks?status=open` lists them. API key.
    #[method(name = "getOpenTasks", param_kind = map, with_extensions)]
    async fn get_open_tasks(
        &self,
        filter: Option<OpenTasksFilter>,
        cursor: Option<String>,
    ) -> RpcResult<TaskPage>;

    /// The market in numbers, as `GET /v1/stats` has them. Anybody.
    #[method(name = "getMarketStats")]
    async fn get_market_stats(&self) -> RpcResult<MarketStats>;
}
