// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {
    AcceptTask,
    ApproveResult,
    CancelTask,
    ComputeProof,
    DisputeTask,
    FailTask,
    ResolveDispute,
    Task
} from "../libraries/Messages.sol";
import {IPermit2} from "./IPermit2.sol";

/// @title IZORAIComputeEscrow
/// @notice Holds the money of compute tasks: paid if and only if a proof came in time and stood, refunded otherwise, without
/// asking anybody. Nobody owns the contract, it takes no fee, and it cannot be changed.
///
/// Every call that carries a signature may be sent by anybody: the signature says whose word it is. A signature counts for this
/// chain and this contract alone, and once, since it names the task, and the attempt where there can be more than one.
///
/// Amounts are in the token's smallest unit; the token zero is the chain's native coin. Times are seconds of the chain's clock. A
/// lease, window or deadline that ends at `t` holds while `block.timestamp < t` and is over from `t` on.
///
/// Nothing is sent to anybody but by that account's own {withdraw}, so that no receiver can hold up another's money.
interface IZORAIComputeEscrow {
    /// @notice Where a task's money stands.
    enum Status {
        /// Nothing is held, and nothing was.
        None,
        /// The budget is held; nobody is bound.
        Funded,
        /// A provider is bound until its lease ends; its stake is held too.
        Accepted,
        /// A proof came in time; the requester may dispute it until the window ends.
        Proven,
        /// The requester disputed; the arbiter may resolve until its window ends. The bond is held too.
        Disputed,
        /// Final: the provider has the budget and its stake.
        Paid,
        /// Final: the arbiter, or its silence, divided the money.
        Split,
        /// Final: the requester has the budget back.
        Refunded,
        /// Final: the requester withdrew the task.
        Cancelled
    }

    /// @notice What is stored of a task, but for the result's hash. One storage slot.
    struct Record {
        /// Who holds the current attempt, or held the last one.
        address provider;
        /// The number of the current or last attempt; they count from 1.
        uint32 attempt;
        /// When the status' time ends: the lease of Accepted, the dispute window of Proven, the arbiter's window of Disputed.
        uint48 until;
        /// Where the money stands.
        Status status;
    }

    /// @notice A payer's signed word to Permit2, whose witness is the task's id.
    struct PermitFunding {
        /// Who pays.
        address payer;
        /// Permit2's nonce.
        uint256 nonce;
        /// Until when Permit2 takes the signature; that second included.
        uint256 deadline;
        /// The payer's signature.
        bytes signature;
    }

    // Events of tasks. A call changes a task's status at most once, and says so by one event; LeaseLapsed may come before it.

    /// @notice None -> Funded.
    event TaskFunded(
        bytes32 indexed taskId, address indexed requester, address indexed token, uint256 budget, address payer
    );
    /// @notice Funded or lapsed -> Accepted.
    event TaskAccepted(bytes32 indexed taskId, address indexed provider, uint32 attempt, uint64 leaseUntil);
    /// @notice Accepted -> Funded.
    event TaskFailed(bytes32 indexed taskId, address indexed provider, uint32 attempt, bytes32 codeHash);
    /// @notice A lease had ended with nothing delivered; the stake went to the requester.
    event LeaseLapsed(bytes32 indexed taskId, address indexed provider, uint32 attempt, uint256 stake);
    /// @notice Accepted -> Proven.
    event TaskProven(
        bytes32 indexed taskId, address indexed provider, uint32 attempt, bytes32 resultHash, uint64 disputeUntil
    );
    /// @notice -> Paid.
    event TaskPaid(
        bytes32 indexed taskId, address indexed provider, uint32 attempt, bytes32 resultHash, uint256 amount
    );
    /// @notice Proven -> Disputed.
    event TaskDisputed(
        bytes32 indexed taskId,
        address indexed provider,
        uint32 attempt,
        bytes32 reasonHash,
        bytes32 evidenceHash,
        uint64 resolveUntil
    );
    /// @notice Disputed -> Split, by the arbiter.
    event TaskResolved(
        bytes32 indexed taskId,
        address indexed provider,
        uint32 attempt,
        uint32 providerBps,
        uint256 toProvider,
        uint256 toRequester
    );
    /// @notice Disputed -> Split, by the arbiter's silence.
    event TaskTimedOut(
        bytes32 indexed taskId,
        address indexed provider,
        uint32 attempt,
        uint256 toProvider,
        uint256 toRequester,
        uint256 burned
    );
    /// @notice Funded or lapsed -> Refunded.
    event TaskRefunded(bytes32 indexed taskId, address indexed requester, uint256 amount);
    /// @notice None, Funded or lapsed -> Cancelled.
    event TaskCancelled(bytes32 indexed taskId, address indexed requester, uint256 amount);

    // Events of accounts.

    /// @notice A provider paid stake in.
    event Staked(address indexed provider, address indexed token, uint256 amount);
    /// @notice A provider announced that stake is to leave.
    event UnstakeAnnounced(address indexed provider, address indexed token, uint256 amount, uint64 leavesAt);
    /// @notice Money left the contract.
    event Withdrawn(address indexed account, address indexed token, address to, uint256 amount);

    // Errors of a task's terms.

    /// @notice The requester is the zero address, so that a refund would be nobody's.
    error ZeroRequester();
    /// @notice The deadline has passed, or is later than `latest`.
    error DeadlineOutOfRange(uint64 deadline, uint256 latest);
    /// @notice A dispute or arbiter window is longer than `longest` seconds.
    error WindowTooLong(uint64 longest);
    /// @notice Of arbiter and dispute window, one is zero and the other is not.
    error ArbiterWithoutWindow();
    /// @notice The arbiter is also the requester or the provider.
    error PartialArbiter(address arbiter);
    /// @notice There is an arbiter, but no time for its word.
    error ZeroArbiterWindow();
    /// @notice There is an arbiter, and stake or bond is less than half the budget, rounded up.
    error StakeOrBondTooSmall(uint256 least);

    // Errors of calls.

    /// @notice The status forbids the call.
    error WrongStatus(bytes32 taskId, Status status);
    /// @notice The message is about another task than the one passed.
    error WrongTask(bytes32 taskId, bytes32 named);
    /// @notice Somebody else signed.
    error WrongSigner(address expected, address actual);
    /// @notice The attempt is not `expected`, the one after the last.
    error WrongAttempt(uint256 expected, uint32 attempt);
    /// @notice All attempts that the task allows are spent.
    error AttemptsSpent(uint32 maxAttempts);
    /// @notice A lease holds until `until`.
    error LeaseHolds(bytes32 taskId, uint48 until);
    /// @notice The lease would not end between `earliest` and `latest`, both included.
    error LeaseOutOfRange(uint64 leaseUntil, uint256 earliest, uint256 latest);
    /// @notice The provider does not hold this attempt now. The record tells why.
    error NotHeld(bytes32 taskId, Record record);
    /// @notice The message names another provider, attempt or result than the proof that stands.
    error WrongResult(bytes32 taskId, address provider, uint32 attempt, bytes32 resultHash);
    /// @notice The proof names another model than the task pins.
    error WrongModel(bytes32 pinned, bytes32 used);
    /// @notice The proof names another input than the task pins.
    error WrongInput(bytes32 pinned, bytes32 used);
    /// @notice The time for this call ended at `until`.
    error TooLate(bytes32 taskId, uint256 until);
    /// @notice The time for this call begins at `from`.
    error TooEarly(bytes32 taskId, uint256 from);
    /// @notice More than all.
    error BpsOutOfRange(uint32 providerBps);
    /// @notice The arrays of a batch differ in length.
    error LengthsDiffer();

    // Errors of accounts.

    /// @notice The native coin sent along is not what the call costs.
    error WrongValue(uint256 expected, uint256 sent);
    /// @notice Permit2 moves tokens only.
    error NativeByPermit();
    /// @notice The transfer moved another amount than it said, as a token that charges a fee does.
    error InexactTransfer(address token, uint256 amount);
    /// @notice The token took from what the contract holds, as a rebasing token does; it is not taken any more.
    error TokenShrank(address token, uint256 held, uint256 balance);
    /// @notice The provider's free stake is less than what is asked of it.
    error StakeTooSmall(address provider, uint256 free, uint256 asked);
    /// @notice There is nothing to send.
    error NothingToWithdraw(address account, address token);
    /// @notice The receiver is the zero address.
    error ZeroReceiver();

    // Tasks.

    /// @notice None -> Funded. The caller pays the budget. Refused if the task was cancelled before.
    function fund(Task calldata task) external payable;

    /// @notice None -> Funded. The payer named by the permit pays the budget, by a Permit2 signature whose witness is
    /// `FundTask(bytes32 taskId)`; it can fund no other task.
    function fundWithPermit2(Task calldata task, PermitFunding calldata permit) external;

    /// @notice Funded -> Accepted. Binds the provider that signed until its lease ends and locks its stake. The attempt is the last
    /// one plus one. The lease ends {MIN_LEASE} from now or later, so that a provider that somebody else binds by an old acceptance
    /// of its own has the time to {fail}, and at the latest `maxDuration` and {LEASE_MARGIN} from now, or at the deadline. A lapsed
    /// lease ends here too: that provider's stake goes to the requester.
    function accept(Task calldata task, AcceptTask calldata acceptance, bytes calldata signature) external;

    /// @notice Accepted -> Funded. The provider gives up while its lease holds: its stake is free again, the attempt is spent.
    function fail(Task calldata task, FailTask calldata failure, bytes calldata signature) external;

    /// @notice Accepted -> Proven, while the lease holds. Opens the dispute window; a task without one is Paid at once.
    function prove(Task calldata task, ComputeProof calldata proof, bytes calldata signature) external;

    /// @notice {prove} for many tasks. Skips those that the provider does not hold any more, since time or somebody with the same
    /// proof may come first; reverts for what the caller got wrong.
    /// @return proven How many were not skipped.
    function proveBatch(Task[] calldata tasks, ComputeProof[] calldata proofs, bytes[] calldata signatures)
        external
        returns (uint256 proven);

    /// @notice Proven -> Paid, by the requester's signature over provider, attempt and result.
    function approve(Task calldata task, ApproveResult calldata approval, bytes calldata signature) external;

    /// @notice Funded -> Paid in one step, before the deadline. Needs the proof and the requester's approval of that provider,
    /// attempt and result, so that nobody can copy a result out of the mempool. No stake is locked.
    function acceptAndProve(
        Task calldata task,
        ComputeProof calldata proof,
        bytes calldata proofSignature,
        ApproveResult calldata approval,
        bytes calldata approvalSignature
    ) external;

    /// @notice Proven -> Paid, by anybody, once the dispute window is over.
    function settle(Task calldata task) external;

    /// @notice {settle} for many tasks. Skips those that are not due, since somebody may come first.
    /// @return settled How many were not skipped.
    function settleBatch(Task[] calldata tasks) external returns (uint256 settled);

    /// @notice Proven -> Disputed, by the requester's signature, within the dispute window. The caller pays the bond; what comes
    /// back of it goes to the requester.
    function dispute(Task calldata task, DisputeTask calldata complaint, bytes calldata signature) external payable;

    /// @notice Disputed -> Split, by the arbiter's signature, within its window. Of budget, stake and bond together the provider
    /// gets the basis points, rounded down, and the requester the rest.
    function resolve(Task calldata task, ResolveDispute calldata verdict, bytes calldata signature) external;

    /// @notice Disputed -> Split, by anybody, once the arbiter's window is over. The budget is halved, an odd unit going to the
    /// requester; stake and bond are burned, so that silence pays nobody.
    function timeout(Task calldata task) external;

    /// @notice Funded or Accepted -> Refunded, by anybody, from the deadline on. A provider that delivered nothing loses its stake
    /// to the requester.
    function refund(Task calldata task) external;

    /// @notice None or Funded -> Cancelled, by the requester's signature, while nobody holds a lease. A task cancelled before it
    /// was funded cannot be funded. A lapsed lease ends here too: that provider's stake goes to the requester.
    function cancel(Task calldata task, CancelTask calldata cancellation, bytes calldata signature) external;

    // Accounts.

    /// @notice Adds to the caller's free stake. Native coin is sent along; a token needs an allowance.
    function stake(address token, uint256 amount) external payable;

    /// @notice Announces that free stake of the caller is to leave. Acceptances can lock it until it does, so that those already
    /// signed stay good; {withdraw} pays what is left of it after {UNSTAKE_DELAY}. Whoever relies on an acceptance counts only the
    /// stake that is not announced: that much stays for the delay at least. Replaces the announcement before; zero takes it back.
    function unstake(address token, uint256 amount) external;

    /// @notice Sends all that is the caller's: what tasks credited to it, and the announced stake whose delay is over.
    /// @return amount What was sent.
    function withdraw(address token, address to) external returns (uint256 amount);

    /// @notice Sends what timeouts burned to the dead address. Until then it lies here, and is nobody's.
    /// @return amount What was sent.
    function burn(address token) external returns (uint256 amount);

    // Views.

    /// @notice The EIP-712 digest of a task under this contract's domain.
    function taskIdOf(Task calldata task) external view returns (bytes32);

    /// @notice What is stored of a task.
    function recordOf(bytes32 taskId) external view returns (Record memory);

    /// @notice The hash of the result that stands while a task is Proven or Disputed, else zero.
    function resultOf(bytes32 taskId) external view returns (bytes32);

    /// @notice What an account has from tasks and may withdraw now; announced stake is not in it.
    function creditOf(address token, address account) external view returns (uint256);

    /// @notice A provider's stake that no task holds, how much of it is announced to leave, and from when on it may.
    function stakeOf(address token, address provider)
        external
        view
        returns (uint256 free, uint256 leaving, uint64 leavesAt);

    /// @notice What the contract owes in a token, to whomever. Not kept for the native coin.
    function heldOf(address token) external view returns (uint256);

    /// @notice Permit2, through which {fundWithPermit2} is paid.
    function PERMIT2() external view returns (IPermit2);

    /// @notice The furthest deadline, in seconds from funding.
    function MAX_DEADLINE() external view returns (uint64);

    /// @notice The longest dispute or arbiter window, in seconds.
    function MAX_WINDOW() external view returns (uint64);

    /// @notice What is left of a lease at least when it begins, in seconds.
    function MIN_LEASE() external view returns (uint64);

    /// @notice What a lease may outlast the task's `maxDuration` by, in seconds.
    function LEASE_MARGIN() external view returns (uint64);

    /// @notice How long announced stake stays, in seconds.
    function UNSTAKE_DELAY() external view returns (uint64);
}
