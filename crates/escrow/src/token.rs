//! What is used of tokens: the parts of ERC-20 that the money's way needs.

#![allow(missing_docs, reason = "ERC-20's own names")]

alloy_sol_types::sol! {
    /// The part of ERC-20 (<https://eips.ethereum.org/EIPS/eip-20>) that is used.
    #[derive(Debug)]
    interface IERC20 {
        function approve(address spender, uint256 value) external returns (bool);
        function allowance(address owner, address spender) external view returns (uint256);
        function balanceOf(address account) external view returns (uint256);
        function decimals() external view returns (uint8);
        function symbol() external view returns (string);
    }
}
