//! Picks a message's type by its name.

/// Calls a function that is generic over the message's type, by the type's name.
macro_rules! by_type {
    ($name:expr, $function:ident($($argument:expr),*)) => {
        match $name {
            "Task" => $function::<taskmarket::Task>($($argument),*),
            "CancelTask" => $function::<taskmarket::CancelTask>($($argument),*),
            "AcceptTask" => $function::<taskmarket::AcceptTask>($($argument),*),
            "FailTask" => $function::<taskmarket::FailTask>($($argument),*),
            "ComputeProof" => $function::<taskmarket::ComputeProof>($($argument),*),
            "ApproveResult" => $function::<taskmarket::ApproveResult>($($argument),*),
            "DisputeTask" => $function::<taskmarket::DisputeTask>($($argument),*),
            "ResolveDispute" => $function::<taskmarket::ResolveDispute>($($argument),*),
            "RegisterNode" => $function::<taskmarket::RegisterNode>($($argument),*),
            "UpdateNodeStatus" => $function::<taskmarket::UpdateNodeStatus>($($argument),*),
            "ReadTask" => $function::<taskmarket::ReadTask>($($argument),*),
            "InferenceReceipt" => $function::<taskmarket::InferenceReceipt>($($argument),*),
            other => panic!("no such message: {other}"),
        }
    };
}
pub(crate) use by_type;
