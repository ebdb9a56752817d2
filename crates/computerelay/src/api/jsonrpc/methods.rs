//! What the methods do: each what its twin in REST does, by the same functions.

use jsonrpsee::core::server::{Methods, RpcModule};
use jsonrpsee::core::{RpcResult, async_trait};
use jsonrpsee::types::Extensions;
use rpc::market::MarketServer;
use rpc::relay::{MarketStats, RefreshNode};
use rpc::tasks::{Contract, OpenTasksFilter, PublishTask, SignedMutation, TaskPage, TaskQuery, TaskView};
use taskmarket::{
    AcceptTask, Address, ComputeProof, Mutation, RegisterNode, Signature, Status, Task, TaskId,
    UpdateNodeStatus,
};

use super::calls::CalledBy;
use crate::api::{App, mutations, openrpc, overview, providers, tasks};
use crate::error::ApiError;
use crate::keys::Caller;

/// The methods, by name.
pub(super) fn methods(app: App) -> Methods {
    let mut module: RpcModule<Rpc> = Rpc { app }.into_rpc();
    module
        .register_method(openrpc::DISCOVER, |_, _, _| openrpc::document().clone())
        .expect("the name is none of the trait's");
    module.into()
}

struct Rpc {
    app: App,
}

/// Who calls a method that takes an API key.
fn caller(extensions: &Extensions) -> Result<&Caller, ApiError> {
    maybe_caller(extensions).ok_or_else(|| ApiError::internal(&"a call was not identified"))
}

fn maybe_caller(extensions: &Extensions) -> Option<&Caller> {
    extensions.get::<CalledBy>().and_then(|CalledBy(caller)| caller.as_ref())
}

#[async_trait]
impl MarketServer for Rpc {
    async fn publish_task(
        &self,
        ext: &Extensions,
        task: Task,
        signature: Signature,
        verifying_contract: Option<Contract>,
    ) -> RpcResult<TaskId> {
        let verifying_contract = verifying_contract.map_or(Address::ZERO, |contract| contract.0);
        // Webhooks are REST's: their secret would have no place in the answer.
        let body = PublishTask { task, signature, verifying_contract, callback_url: None };
        let (stored, _) = tasks::take_in(&self.app, caller(ext)?, body).await?;
        Ok(stored.record.id)
    }

    async fn accept_task(
        &self,
        ext: &Extensions,
        accept: AcceptTask,
        signature: Signature,
    ) -> RpcResult<TaskView> {
        let (id, body) = (accept.task_id, SignedMutation { mutation: accept, signature });
        Ok(mutations::mutate(&self.app, maybe_caller(ext), id, body, Mutation::Accept).await?.1)
    }

    async fn submit_proof(
        &self,
        ext: &Extensions,
        proof: ComputeProof,
        signature: Signature,
    ) -> RpcResult<TaskView> {
        let (id, body) = (proof.task_id, SignedMutation { mutation: proof, signature });
        Ok(mutations::mutate(&self.app, maybe_caller(ext), id, body, Mutation::Proof).await?.1)
    }

    async fn get_task_status(&self, ext: &Extensions, task_id: TaskId) -> RpcResult<TaskView> {
        let task = tasks::find(&self.app, task_id).await?;
        Ok(tasks::view(&self.app, &task, Some(caller(ext)?)))
    }

    async fn register_node(
        &self,
        _: &Extensions,
        registration: RegisterNode,
        metadata: String,
        signature: Signature,
    ) -> RpcResult<()> {
        Ok(providers::refresh_node(&self.app, RefreshNode { registration, metadata, signature }).await?)
    }

    async fn update_node_status(
        &self,
        _: &Extensions,
        update: UpdateNodeStatus,
        signature: Signature,
    ) -> RpcResult<()> {
        let body = SignedMutation { mutation: update, signature };
        Ok(providers::set_node_status(&self.app, body).await?)
    }

    async fn get_open_tasks(
        &self,
        ext: &Extensions,
        filter: Option<OpenTasksFilter>,
        cursor: Option<String>,
    ) -> RpcResult<TaskPage> {
        let OpenTasksFilter { requester, gpu_type, limit } = filter.unwrap_or_default();
        let status = Some(Status::Open);
        let query = TaskQuery { requester, status, gpu_type, limit, cursor, ..TaskQuery::default() };
        Ok(tasks::page(&self.app, caller(ext)?, query).await?)
    }

    async fn get_market_stats(&self) -> RpcResult<MarketStats> {
        Ok(overview::market_stats(&self.app, &self.app.hub.totals()).await?)
    }
}
